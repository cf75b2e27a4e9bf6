"""May requests share a batch? Found out when a variant is measured, and doubted while it serves."""
