-- API keys and grants are counted by the team that they name.

CREATE INDEX api_keys_of_team ON api_keys (team);
CREATE INDEX tool_grants_of_principal ON tool_grants (principal);
