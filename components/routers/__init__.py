"""Which tokens go to which expert."""
