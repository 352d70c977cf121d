-- Begins a reader's lease, by the store's own clock: garbage unnamed after this waits until it ends.
--
-- KEYS  1 readers
-- ARGV  1 nonce  2 lease  3 seconds that it lasts
-- Returns {nonce, "leased"}
--
-- The first write frees memory (leases that nobody gave back): a full store can still be read.
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. (now - tonumber(ARGV[3])))
redis.call('ZADD', KEYS[1], now, ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return {ARGV[1], 'leased'}
