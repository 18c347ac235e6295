"""What a finished model is worth: losses on held-out text and answers, choices, questions about pictures."""
