"""What a person looks at: picture sheets of a run and its report. numpy and Pillow; never jax."""
