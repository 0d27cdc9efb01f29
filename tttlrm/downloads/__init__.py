"""Files that others publish: fetched on request, checked, and kept with a record of what they are."""
