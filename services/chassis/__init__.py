"""What every node stands on and no node owns: errors, servers, channels, the database, and how a mesh is run."""
