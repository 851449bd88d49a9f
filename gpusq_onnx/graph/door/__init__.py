"""What a model file must satisfy before anything trusts it: rules as data."""
