-- Changes settings and labels, if nobody else did. A step in between does not matter: settings count from the next
-- one, and a commit compares the revision.
--
-- KEYS  1 head
-- ARGV  1 nonce  2 incarnation  3 revision expected  4 settings  5 revision  6 spec  7 chain expected ("": any)
--       8 seal of the settings
-- Returns {nonce, verdict[, step]}: patched (after this step) | moved | damaged (the head is)
local head = redis.call('HMGET', KEYS[1], 'incarnation', 'settings_revision', 'step', 'chain')
if head[1] ~= ARGV[2] or head[2] ~= ARGV[3] or (ARGV[7] ~= '' and head[4] ~= ARGV[7]) then
  return {ARGV[1], 'moved'}
end
if not string.find(head[3] or '', '^%d+$') then
  return {ARGV[1], 'damaged'}
end
redis.call('HSET', KEYS[1], 'settings', ARGV[4], 'settings_revision', ARGV[5], 'spec', ARGV[6], 'sealed', ARGV[8])
return {ARGV[1], 'patched', head[3]}
