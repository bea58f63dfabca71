"""The averaged teacher, and which of its masks teaches which box."""
