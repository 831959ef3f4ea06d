"""What code of all layers counts, times and notes while it works; `operations/` shows it to operators."""
