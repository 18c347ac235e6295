"""Small trainable additions to frozen weights."""
