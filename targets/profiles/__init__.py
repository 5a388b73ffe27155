"""Device profiles as data, one TOML file a target."""
