"""Making a model smaller with its inputs in view: what goes through its matrices decides which numbers matter."""
