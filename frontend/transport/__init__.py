"""The server below the app: connections, request heads, and their limits."""
