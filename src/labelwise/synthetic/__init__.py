"""Made-up CT: a cohort for demonstrations and tests, without a download."""
