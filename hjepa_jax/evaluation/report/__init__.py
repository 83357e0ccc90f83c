"""The report of one evaluation: tables, figures and sentences."""
