-- Begins a reader's lease, by the store's own clock: what becomes garbage after this stays until the lease ends.
--
-- KEYS  1 readers
-- ARGV  1 nonce  2 lease  3 seconds that it lasts
-- Returns {nonce, "leased"}
--
-- The first write frees memory (leases that have expired), so a full store can still be read.
local readers_key = KEYS[1]
local nonce, lease, lease_seconds = ARGV[1], ARGV[2], ARGV[3]

local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', readers_key, '-inf', '(' .. (now - tonumber(lease_seconds)))
redis.call('ZADD', readers_key, now, lease)
redis.call('EXPIRE', readers_key, lease_seconds)
return {nonce, 'leased'}
