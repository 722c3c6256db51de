"""What a run says: terminal tables, one HTML page, exports."""
