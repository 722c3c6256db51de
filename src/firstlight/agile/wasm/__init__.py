"""WebAssembly functions: workers in sandboxes, and the conversation with them."""
