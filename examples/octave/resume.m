% A run that survives: killed and started again, it goes on where it was; it logs its loss, and stops by a rule.
%
% octave-cli examples/octave/resume.m http://127.0.0.1:8000 run-7
%
% curl carries the bytes, by files: Octave's urlread cannot PUT. Little-endian machines only; rosenbrock.m turns the
% bytes on the others.
1;

function [body, told] = call (method, url, sent, varargin)
  % One call. What got no answer, 408, 429 or 503 is sent again for a minute: a step has a number, the creation a key.
  % told: the status, Adamd-Step, ETag and Adamd-Stop.
  files = {tempname(), tempname()};
  file = fopen (files{1}, "wb");
  fwrite (file, sent, "uint8");
  fclose (file);
  headers = sprintf (" -H '%s'", "Accept: application/octet-stream, application/json;q=0.5", varargin{:});
  command = ["curl --silent --max-time 30 -X " method headers " --data-binary '@" files{1} "' -o '" files{2} "' " ...
             "--write-out '%{http_code} %header{adamd-step} %header{etag} %header{adamd-stop}' '" url "'"];
  began = time ();
  while (true)
    [failed, out] = system (command);
    told = strsplit (out, " ");
    if (! failed && ! any (strcmp (told{1}, {"408", "429", "503"})) || time () - began > 60)
      break;
    end
    pause (0.1 + 0.4 * rand ());
  end
  if (failed)
    error ("%s %s: no answer", method, url);
  end
  file = fopen (files{2}, "rb");
  body = fread (file, Inf, "uint8=>uint8");
  fclose (file);
  cellfun (@unlink, files);
  if (str2double (told{1}) >= 300 && isempty (strfind (char (body'), "session_exists")))
    error ("%s %s: %s", method, url, char (body'));
  end
end

function [loss, gradient] = loss_and_gradient (p)
  x = p(1); y = p(2);
  a = 1 - x;
  t = y - x*x;
  loss = a*a + 100*(t*t);
  gradient = [-2*a - 400*x*t; 200*t];
end

arguments = argv ();
name = arguments{2};
sessions = [arguments{1} "/v1/sessions"];
here = [sessions "/" name];
octets = "Content-Type: application/octet-stream";
start = sprintf (['{"name": "%s", "parameters": [-1.2, 1.0], "optimizer": {"name": "adam", "lr": 0.3, ' ...
                  '"stop": {"target_loss": 0.1, "max_steps": 1000}}}'], name);
% A 409 session_exists: this run has begun already.
call ("POST", sessions, start, "Content-Type: application/json", ...
      sprintf ("Idempotency-Key: %s-%d-%.0f", name, getpid (), 1e6*now ()));

[body, told] = call ("GET", [here "/parameters"], "");
while (isempty (told{4}))
  [loss, gradient] = loss_and_gradient (typecast (body, "double"));
  step = str2double (told{2}) + 1;
  [body, told] = call ("PUT", sprintf ("%s/steps/%d", here, step), typecast (gradient, "uint8"), octets, ...
                       ["If-Match: " told{3}], sprintf ('Adamd-Metrics: {"loss": %.17g}', loss));
  p = typecast (body, "double");
  printf ("%d %.17g %.17g %.17g\n", step, loss, p(1), p(2));
  fflush (stdout);
end
printf ("stop %s\n", told{4});
