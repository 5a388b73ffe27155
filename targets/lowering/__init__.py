"""From encodings and notes to operators that a runtime really executes."""
