"""The CustomResourceDefinition, generated from the specification."""
