"""Several processes that train one network: how they meet, agree and end."""
