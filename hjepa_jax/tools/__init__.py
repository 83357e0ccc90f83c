"""Command-line programs around training: doctor, sweeps, reproduction, cost, checks, fuzzing."""
