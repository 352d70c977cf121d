"""Connections to a store: its URL, single servers, Sentinels and Clusters, failures, silence, trust."""
