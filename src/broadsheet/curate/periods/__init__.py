"""Parts of methods that compare text of several periods: dates, slices, splits, counts of words, models, change."""
