"""Is the bench what the papers' authors wrote? Every number here was computed by their own published code."""
