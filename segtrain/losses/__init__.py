"""What supervises masks and boxes, as pure functions of tensors."""
