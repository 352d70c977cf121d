% Rosenbrock's valley from Octave, over HTTP, in float64.
%
% Octave's urlread cannot PUT, so curl carries the bytes, by two files. (MATLAB's webwrite can, but gives up after 5 s:
% weboptions('Timeout', 300).)
1;

function answer = call (method, url, kind, body, more)
  % One call; curl itself repeats what got no answer, or 429 or 503.
  sent = tempname ();
  got = tempname ();
  file = fopen (sent, "wb");
  fwrite (file, body, "uint8");
  fclose (file);
  command = sprintf (["curl --silent --show-error --fail-with-body --retry 10 --retry-max-time 60 --retry-connrefused -X %s -o '%s' " ...
                      "-H 'Content-Type: %s' -H 'Accept: application/octet-stream, application/json;q=0.5' %s " ...
                      "--data-binary '@%s' '%s'"], method, got, kind, more, sent, url);
  status = system (command);
  file = fopen (got, "rb");
  answer = zeros (0, 1, "uint8");
  if (file >= 0)
    answer = fread (file, Inf, "uint8=>uint8");
    fclose (file);
    unlink (got);
  end
  unlink (sent);
  if (status != 0)
    error ("%s %s: %s", method, url, char (answer'));
  end
end

function bytes = encode (values)
  bytes = typecast (values(:), "uint8");  % column-major, as Octave keeps it; the order is ours to choose
  [~, ~, order] = computer ();
  if (order == "B")
    bytes = reshape (flipud (reshape (bytes, 8, [])), [], 1);
  end
end

function values = decode (bytes)
  [~, ~, order] = computer ();
  if (order == "B")
    bytes = reshape (flipud (reshape (bytes, 8, [])), [], 1);
  end
  values = typecast (bytes, "double");
end

function g = gradient_at (p)
  x = p(1);
  y = p(2);
  t = y - x*x;
  g = [-2*(1 - x) - 400*x*t; 200*t];
end

base = getenv ("ADAMD_URL");
arguments = argv ();
if (! isempty (arguments))
  base = arguments{1};
elseif (isempty (base))
  base = "http://127.0.0.1:8000";
end
octets = "application/octet-stream";
sessions = [base "/v1/sessions"];
name = sprintf ("rosenbrock-octave-%d-%.0f", getpid (), 1e6*now ());
here = [sessions "/" name];
document = sprintf ('{"name": "%s", "parameters": [-1.2, 1.0], "optimizer": {"name": "adam", "lr": 0.05}}', name);
call ("POST", sessions, "application/json", document, sprintf ("-H 'Idempotency-Key: %s'", name));
parameters = decode (call ("GET", [here "/parameters"], octets, "", ""));
for step = 1:20
  url = sprintf ("%s/steps/%d", here, step);
  parameters = decode (call ("PUT", url, octets, encode (gradient_at (parameters)), ""));
  printf ("%d %.17g %.17g\n", step, parameters(1), parameters(2));
end
call ("DELETE", here, octets, "", "");
