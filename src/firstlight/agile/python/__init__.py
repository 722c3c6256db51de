"""Python functions: interpreters with the handler imported, which fork for each request."""
