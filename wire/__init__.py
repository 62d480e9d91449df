"""What all sides must agree on: messages, image format, topology and placement, hashing, errors, sockets."""
