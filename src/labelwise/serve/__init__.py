"""A model behind HTTP: scans in, labels out. Knows requests, jobs and limits; what a job computes is handed to it."""
