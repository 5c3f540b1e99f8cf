"""What a trained detector does for people: predictions, videos, exported files, a service."""
