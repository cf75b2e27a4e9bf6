"""Protection schemes side by side on generated clusters: what a failure costs under each."""
