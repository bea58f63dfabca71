"""From images to sealed depth maps."""
