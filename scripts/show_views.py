"""Writes a contact sheet of augmented views: the same as `hjepa views`."""

from hjepa_jax.tools.commands.views import run

if __name__ == "__main__":
    run()
