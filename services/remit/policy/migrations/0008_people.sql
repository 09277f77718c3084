-- Who there is: API keys are looked up by whom they speak for.

CREATE INDEX api_keys_of_subject ON api_keys (subject);
