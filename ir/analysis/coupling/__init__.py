"""Which channels live or die together: operators' rules, the relation they build, and its removal."""
