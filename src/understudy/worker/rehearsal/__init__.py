"""What a model is found to do before anybody asks it: probes that it answers, shapes that it returns."""
