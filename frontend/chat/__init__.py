"""Chat: messages become the prompt of a completion, and its text becomes a message."""
