"""What is wrong with a cohort and how large its structures are: check, repair, measure, duplicates."""
