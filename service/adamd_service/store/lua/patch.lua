-- Changes settings and labels, unless somebody else changed them first. A step in between does not matter: settings
-- count from the next step, and a commit compares the revision.
--
-- KEYS  1 head
-- ARGV  1 nonce  2 incarnation and 3 settings revision that the head must have
--       4 settings  5 settings revision  6 spec  7 chain that the head must have ("": any)  8 seal of the settings
-- Returns {nonce, verdict[, step]}: patched (after this step) | moved | damaged (the head is)
local head_key = KEYS[1]
local nonce, expected_incarnation, expected_revision = ARGV[1], ARGV[2], ARGV[3]
local settings, revision, spec, expected_chain, seal = ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8]

local incarnation, head_revision, step, chain = unpack(redis.call('HMGET', head_key, 'incarnation',
  'settings_revision', 'step', 'chain'))
if incarnation ~= expected_incarnation or head_revision ~= expected_revision
  or (expected_chain ~= '' and chain ~= expected_chain) then
  return {nonce, 'moved'}
end
if not string.find(step or '', '^%d+$') then
  return {nonce, 'damaged'}
end
redis.call('HSET', head_key, 'settings', settings, 'settings_revision', revision, 'spec', spec, 'sealed', seal)
return {nonce, 'patched', step}
