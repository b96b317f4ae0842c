"""The HTTP server: θ_β and θ_τ alone, and the fused pair, by OpenAI's API."""
