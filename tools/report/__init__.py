"""Tables and reports for people."""
