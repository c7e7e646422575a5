"""Any network in a box: what lies between the roles, and channels that are as slow as it says."""
