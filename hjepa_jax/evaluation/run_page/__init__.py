"""The page of one evaluation: tables, charts and pictures in one HTML file."""
