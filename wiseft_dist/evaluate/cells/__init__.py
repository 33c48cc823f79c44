"""What was scored: cells made of parts, committed under content keys, dealt to readers."""
