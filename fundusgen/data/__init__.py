"""From a manifest of photographs to framed images of patients."""
