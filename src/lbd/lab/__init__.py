"""Network namespaces as hosts: one lab for the tests and for the demo."""
