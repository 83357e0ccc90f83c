"""Translation of parameters from and to other frameworks."""
