"""What the operator tells of itself and of its trainings: metrics and health pages."""
