"""The bytes between clients and nodes: messages, images, versions, limits. Pure."""
